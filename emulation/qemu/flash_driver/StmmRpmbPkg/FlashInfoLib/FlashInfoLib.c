/** @file
  Where the areas of the flash are: variables, working area and spare area follow each other in
  the memory of the flash driver.

  SPDX-License-Identifier: MIT
**/

#include <PiMm.h>

#include <Library/MmServicesTableLib.h>
#include <Library/PcdLib.h>
#include <Library/VariableFlashInfoLib.h>
#include <Protocol/SmmFirmwareVolumeBlock.h>

#define VARIABLE_SIZE  FixedPcdGet32 (PcdFlashNvStorageVariableSize)
#define WORKING_SIZE   FixedPcdGet32 (PcdFlashNvStorageFtwWorkingSize)
#define SPARE_SIZE     FixedPcdGet32 (PcdFlashNvStorageFtwSpareSize)

/**
  Say where an area is.

  @param[in]  Offset        Start of the area, from the start of the flash, in bytes.
  @param[in]  Size          Size of the area in bytes.
  @param[out] BaseAddress   Receives its address.
  @param[out] Length        Receives its size.

  @retval EFI_SUCCESS            Found.
  @retval EFI_INVALID_PARAMETER  A pointer is NULL.
  @retval EFI_NOT_FOUND          There is no flash.
**/
STATIC
EFI_STATUS
GetArea (
  IN  UINTN                 Offset,
  IN  UINTN                 Size,
  OUT EFI_PHYSICAL_ADDRESS  *BaseAddress,
  OUT UINT64                *Length
  )
{
  EFI_SMM_FIRMWARE_VOLUME_BLOCK_PROTOCOL  *Fvb;
  EFI_STATUS                              Status;

  if ((BaseAddress == NULL) || (Length == NULL)) {
    return EFI_INVALID_PARAMETER;
  }

  Status = gMmst->MmLocateProtocol (&gEfiSmmFirmwareVolumeBlockProtocolGuid, NULL, (VOID **)&Fvb);
  if (!EFI_ERROR (Status)) {
    Status = Fvb->GetPhysicalAddress (Fvb, BaseAddress);
  }

  if (EFI_ERROR (Status)) {
    return EFI_NOT_FOUND;
  }

  *BaseAddress += Offset;
  *Length       = Size;
  return EFI_SUCCESS;
}

EFI_STATUS
EFIAPI
GetVariableFlashNvStorageInfo (
  OUT EFI_PHYSICAL_ADDRESS  *BaseAddress,
  OUT UINT64                *Length
  )
{
  return GetArea (0, VARIABLE_SIZE, BaseAddress, Length);
}

EFI_STATUS
EFIAPI
GetVariableFlashFtwWorkingInfo (
  OUT EFI_PHYSICAL_ADDRESS  *BaseAddress,
  OUT UINT64                *Length
  )
{
  return GetArea (VARIABLE_SIZE, WORKING_SIZE, BaseAddress, Length);
}

EFI_STATUS
EFIAPI
GetVariableFlashFtwSpareInfo (
  OUT EFI_PHYSICAL_ADDRESS  *BaseAddress,
  OUT UINT64                *Length
  )
{
  return GetArea (VARIABLE_SIZE + WORKING_SIZE, SPARE_SIZE, BaseAddress, Length);
}
