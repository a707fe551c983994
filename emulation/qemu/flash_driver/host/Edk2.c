/** @file
  EDK2's libraries and MM services for the host, and the way for a test to play OP-TEE.

  SPDX-License-Identifier: MIT
**/

#include "Edk2.h"

#include <stdlib.h>
#include <string.h>

EFI_GUID  gEfiAuthenticatedVariableGuid =
{
  0xaaf32c78, 0x947b, 0x439a, { 0xa1, 0x80, 0x2e, 0x14, 0x4e, 0xc3, 0x77, 0x92 }
};
EFI_GUID  gEfiSystemNvDataFvGuid =
{
  0xfff12b8d, 0x7696, 0x4c8b, { 0xa9, 0x85, 0x27, 0x47, 0x07, 0x5b, 0x4f, 0x50 }
};
EFI_GUID  gEfiSmmFirmwareVolumeBlockProtocolGuid =
{
  0xd326d041, 0xbd31, 0x4c01, { 0xb5, 0xa8, 0x62, 0x8b, 0xe8, 0x7f, 0x06, 0x53 }
};

///
/// What the test answers to a direct message; as ArmFfaLibMsgSendDirectReq.
///
typedef EFI_STATUS (*HOST_MESSAGE)(
  UINT16           DestPartId,
  UINT32           Flags,
  DIRECT_MSG_ARGS  *ImpDefArgs
  );

static HOST_MESSAGE  mMessage;
static UINTN         mPagesLeft;
static VOID          *mAllocated[2];
static VOID          *mFvb;
static EFI_HANDLE    mFvbHandle;

/**
  Power on: nothing is allocated or installed.

  @param[in] Message   Answers the messages of the driver.
  @param[in] Pages     How many pages can be allocated.
**/
VOID
HostReset (
  HOST_MESSAGE  Message,
  UINTN         Pages
  )
{
  for (size_t Index = 0; Index < 2; Index++) {
    free (mAllocated[Index]);
    mAllocated[Index] = NULL;
  }

  mMessage   = Message;
  mPagesLeft = Pages;
  mFvb       = NULL;
}

/**
  The installed firmware volume block protocol, or NULL.
**/
VOID *
HostFvb (
  VOID
  )
{
  return mFvb;
}

static EFI_STATUS
InstallProtocolInterface (
  EFI_HANDLE          *Handle,
  EFI_GUID            *Protocol,
  EFI_INTERFACE_TYPE  InterfaceType,
  VOID                *Interface
  )
{
  if ((InterfaceType != EFI_NATIVE_INTERFACE) ||
      (Protocol != &gEfiSmmFirmwareVolumeBlockProtocolGuid))
  {
    return EFI_INVALID_PARAMETER;
  }

  mFvb    = Interface;
  *Handle = &mFvbHandle;
  return EFI_SUCCESS;
}

static EFI_STATUS
LocateProtocol (
  EFI_GUID  *Protocol,
  VOID      *Registration,
  VOID      **Interface
  )
{
  if ((Protocol != &gEfiSmmFirmwareVolumeBlockProtocolGuid) || (Registration != NULL) ||
      (mFvb == NULL))
  {
    return EFI_NOT_FOUND;
  }

  *Interface = mFvb;
  return EFI_SUCCESS;
}

static EFI_MM_SYSTEM_TABLE  mSystemTable = { InstallProtocolInterface, LocateProtocol };

EFI_MM_SYSTEM_TABLE  *gMmst = &mSystemTable;

VOID *
AllocateRuntimePages (
  UINTN  Pages
  )
{
  VOID  *Buffer;

  if (Pages > mPagesLeft) {
    return NULL;
  }

  for (size_t Index = 0; Index < 2; Index++) {
    if (mAllocated[Index] == NULL) {
      Buffer = aligned_alloc (SIZE_4KB, Pages * SIZE_4KB);
      // Nobody may rely on what is in fresh pages.
      memset (Buffer, 0xA5, Pages * SIZE_4KB);
      mAllocated[Index] = Buffer;
      mPagesLeft       -= Pages;
      return Buffer;
    }
  }

  return NULL;
}

EFI_STATUS
ArmFfaLibMsgSendDirectReq (
  UINT16           DestPartId,
  UINT32           Flags,
  DIRECT_MSG_ARGS  *ImpDefArgs
  )
{
  return mMessage (DestPartId, Flags, ImpDefArgs);
}

EFI_STATUS
FfaStatusToEfiStatus (
  UINTN  FfaStatus
  )
{
  switch ((int32_t)FfaStatus) {
    case 0:
      return EFI_SUCCESS;
    case -2:
      return EFI_INVALID_PARAMETER;
    case -3:
      return EFI_OUT_OF_RESOURCES;
    case -6:
      return EFI_ACCESS_DENIED;
    case -9:
      return EFI_NOT_FOUND;
    default:
      return EFI_UNSUPPORTED;
  }
}

VOID *
CopyMem (
  VOID        *Destination,
  CONST VOID  *Source,
  UINTN       Length
  )
{
  return memmove (Destination, Source, Length);
}

VOID *
SetMem (
  VOID   *Buffer,
  UINTN  Length,
  UINT8  Value
  )
{
  return memset (Buffer, Value, Length);
}

VOID *
ZeroMem (
  VOID   *Buffer,
  UINTN  Length
  )
{
  return memset (Buffer, 0, Length);
}

int64_t
CompareMem (
  CONST VOID  *Destination,
  CONST VOID  *Source,
  UINTN       Length
  )
{
  return memcmp (Destination, Source, Length);
}

EFI_GUID *
CopyGuid (
  EFI_GUID        *Destination,
  CONST EFI_GUID  *Source
  )
{
  *Destination = *Source;
  return Destination;
}

UINT16
CalculateCheckSum16 (
  CONST UINT16  *Buffer,
  UINTN         Length
  )
{
  UINT16  Sum;

  Sum = 0;
  for (UINTN Index = 0; Index < Length / sizeof (UINT16); Index++) {
    Sum = (UINT16)(Sum + Buffer[Index]);
  }

  return (UINT16)(0 - Sum);
}
