/** @file
  Storage calls: direct FF-A messages to the endpoint of OP-TEE that keeps one file for
  StandaloneMM in its RPMB file system.

  SPDX-License-Identifier: MIT
**/

#include "RpmbFvb.h"

#include <Library/ArmFfaLib.h>

#define STORAGE_ENDPOINT_ID  4
#define STORAGE_READ         0xC4000066
#define STORAGE_WRITE        0xC4000067

/**
  Have OP-TEE read or write a range of the file.

  @param[in] Service   STORAGE_READ or STORAGE_WRITE.
  @param[in] Offset    First byte, from the start of the file.
  @param[in] Length    Number of bytes.
  @param[in] Buffer    Where the bytes go to or come from.

  @retval EFI_SUCCESS  OP-TEE did it.
  @retval others       The message was not taken, or OP-TEE's answer was an error.
**/
STATIC
EFI_STATUS
CallStorage (
  IN UINTN  Service,
  IN UINTN  Offset,
  IN UINTN  Length,
  IN UINTN  Buffer
  )
{
  DIRECT_MSG_ARGS  Message;
  EFI_STATUS       Status;

  Message.Arg0 = Service;
  Message.Arg1 = Buffer;
  Message.Arg2 = Length;
  Message.Arg3 = Offset;
  Message.Arg4 = 0;

  Status = ArmFfaLibMsgSendDirectReq (STORAGE_ENDPOINT_ID, 0, &Message);
  if (EFI_ERROR (Status)) {
    return Status;
  }

  // An FF-A code of 32 bits, which OP-TEE puts zero-extended into the 64-bit register.
  return FfaStatusToEfiStatus (Message.Arg0);
}

EFI_STATUS
StorageRead (
  IN  UINTN  Offset,
  IN  UINTN  Length,
  OUT UINT8  *Buffer
  )
{
  return CallStorage (STORAGE_READ, Offset, Length, (UINTN)Buffer);
}

EFI_STATUS
StorageWrite (
  IN UINTN        Offset,
  IN UINTN        Length,
  IN CONST UINT8  *Buffer
  )
{
  return CallStorage (STORAGE_WRITE, Offset, Length, (UINTN)Buffer);
}
